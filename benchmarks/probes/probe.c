/* What the machine gives at this moment: read bandwidth, and the peaks of its dot products.
 *
 * Usage: probe THREADS MEBIBYTES. Prints one JSON object. The buffer should be far larger than the
 * last-level cache. Each thread reads its own part, best of three passes with a prefetch and three
 * without. A peak counts multiplications and additions, and is null where the processor lacks the
 * instruction:
 *   int8_operations_per_s      vpdpbusd on 512-bit registers, or 256-bit where only AVX-VNNI is; with
 *                              AVX2 alone vpmaddubsw, vpmaddwd and vpaddd
 *   bf16_operations_per_s      vdpbf16ps on 512-bit registers
 *   amx_int8_operations_per_s  tdpbssd on full tiles
 *   amx_bf16_operations_per_s  tdpbf16ps on full tiles
 * These are what the machine can do; what it did on average meanwhile, as parts of them, where others
 * use the same cores and memory:
 *   read_share                 of the reads
 *   int8_share                 of the products; null without a peak
 */
#define _DEFAULT_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "read_all.h"

enum { MAX_THREADS = 256, PASSES = 6, BURSTS = 200, DOT_STEPS = 150000, DOT_CHAINS = 12 };
enum { TILE_STEPS = 6000, TILE_CHAINS = 4 };

static pthread_barrier_t barrier;
static char *buffer;
static size_t bytes_per_thread;
static double pass_seconds[PASSES];
static volatile int64_t sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__AVX512VNNI__)
#define DOT_LANES 64
typedef __m512i dot_t;
static inline dot_t dot_set(int v) { return _mm512_set1_epi8(v); }
static inline dot_t dot(dot_t s, dot_t a, dot_t b) { return _mm512_dpbusd_epi32(s, a, b); }
#elif defined(__AVXVNNI__)
#define DOT_LANES 32
typedef __m256i dot_t;
static inline dot_t dot_set(int v) { return _mm256_set1_epi8(v); }
static inline dot_t dot(dot_t s, dot_t a, dot_t b) { return _mm256_dpbusd_avx_epi32(s, a, b); }
#elif defined(__AVX2__)
/* Three instructions, as without VNNI: the second makes 32-bit sums of the first one's 16-bit pairs. */
#define DOT_LANES 32
typedef __m256i dot_t;
static inline dot_t dot_set(int v) { return _mm256_set1_epi8(v); }
static inline dot_t dot(dot_t s, dot_t a, dot_t b) {
  __asm__("" : "+x"(a)); /* else one product serves all chains */
  const __m256i pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

#if defined(DOT_LANES)
static void run_int8(void) {
  dot_t sums[DOT_CHAINS];
#pragma GCC unroll 12
  for (int c = 0; c < DOT_CHAINS; c++) {
    sums[c] = dot_set(0);
    __asm__("" : "+v"(sums[c])); /* else the chains are seen to be equal, and one is left */
  }
  const dot_t a = dot_set(1), b = dot_set(2);
  for (int i = 0; i < DOT_STEPS; i++) {
#pragma GCC unroll 12
    for (int c = 0; c < DOT_CHAINS; c++) sums[c] = dot(sums[c], a, b);
  }
  /* The sums are used, so that the loop is not dropped; together, so that they stay in registers. */
#pragma GCC unroll 12
  for (int c = 1; c < DOT_CHAINS; c++) sums[0] = dot(sums[0], sums[c], b);
  int32_t lane;
  memcpy(&lane, &sums[0], sizeof lane);
  sink += lane;
}
#endif

#if defined(__AVX512BF16__)
static void run_bf16(void) {
  __m512 sums[DOT_CHAINS];
#pragma GCC unroll 12
  for (int c = 0; c < DOT_CHAINS; c++) {
    sums[c] = _mm512_setzero_ps();
    __asm__("" : "+v"(sums[c]));
  }
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = a; /* ones */
  for (int i = 0; i < DOT_STEPS; i++) {
#pragma GCC unroll 12
    for (int c = 0; c < DOT_CHAINS; c++) sums[c] = _mm512_dpbf16_ps(sums[c], a, b);
  }
#pragma GCC unroll 12
  for (int c = 1; c < DOT_CHAINS; c++) sums[0] = _mm512_add_ps(sums[0], sums[c]);
  sink += (int64_t)_mm512_reduce_add_ps(sums[0]);
}
#endif

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define TILES 1
static int have_tiles; /* Linux lends the tile registers to processes that ask for them. */

static void ask_for_tiles(void) {
  const int request_permission = 0x1023, tile_data = 18;
  have_tiles = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/* All eight tiles of 16 rows of 64 bytes, zeros. */
static void configure_tiles(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int t = 0; t < 8; t++) config.row_bytes[t] = 64, config.rows[t] = 16;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

/* Four independent sums, as many as two by two blocks of tiles have. */
#define RUN_TILES(dot)                                       \
  configure_tiles();                                         \
  for (int i = 0; i < TILE_STEPS; i++)                       \
    __asm__ volatile(dot " %%tmm6, %%tmm4, %%tmm0\n"         \
                     dot " %%tmm7, %%tmm4, %%tmm1\n"         \
                     dot " %%tmm6, %%tmm5, %%tmm2\n"         \
                     dot " %%tmm7, %%tmm5, %%tmm3\n" ::);    \
  __asm__ volatile("tilerelease" ::)

static void run_amx_int8(void) { RUN_TILES("tdpbssd"); }
static void run_amx_bf16(void) { RUN_TILES("tdpbf16ps"); }
#else
#define TILES 0
enum { have_tiles = 0 };
static void ask_for_tiles(void) {}
#endif

/* A burst of one instruction: null where it is missing; operations a burst. */
typedef struct {
  const char *name;
  void (*run)(void);
  double operations;
} peak_t;

static const peak_t peaks[] = {
#if defined(DOT_LANES)
    {"int8", run_int8, 2.0 * DOT_LANES * DOT_CHAINS * DOT_STEPS},
#else
    {"int8", NULL, 0},
#endif
#if defined(__AVX512BF16__)
    {"bf16", run_bf16, 2.0 * 32 * DOT_CHAINS * DOT_STEPS},
#else
    {"bf16", NULL, 0},
#endif
#if TILES
    {"amx_int8", run_amx_int8, 2.0 * 16 * 16 * 64 * TILE_CHAINS * TILE_STEPS},
    {"amx_bf16", run_amx_bf16, 2.0 * 16 * 16 * 32 * TILE_CHAINS * TILE_STEPS},
#else
    {"amx_int8", NULL, 0},
    {"amx_bf16", NULL, 0},
#endif
};
enum { PEAKS = sizeof peaks / sizeof *peaks, FIRST_TILE_PEAK = 2 };
static double burst_seconds[PEAKS][MAX_THREADS], all_seconds[PEAKS][MAX_THREADS];

static int missing(int p) { return !peaks[p].run || (p >= FIRST_TILE_PEAK && !have_tiles); }

static void *work(void *argument) {
  size_t thread = (size_t)argument;
  char *mine = buffer + thread * bytes_per_thread;
  memset(mine, 1, bytes_per_thread);
  for (int pass = 0; pass < PASSES; pass++) {
    pthread_barrier_wait(&barrier);
    double start = now();
    sink += pass % 2 ? read_all(mine, bytes_per_thread, 0) : read_all(mine, bytes_per_thread, 4096);
    pthread_barrier_wait(&barrier);
    if (thread == 0) pass_seconds[pass] = now() - start;
  }
  /* Short bursts, the best of many: one that is interrupted says nothing about the peak. */
  for (int p = 0; p < PEAKS; p++) {
    if (missing(p)) continue;
    for (int burst = 0; burst < BURSTS; burst++) {
      pthread_barrier_wait(&barrier);
      double start = now();
      peaks[p].run();
      double seconds = now() - start;
      all_seconds[p][thread] += seconds;
      if (burst == 0 || seconds < burst_seconds[p][thread]) burst_seconds[p][thread] = seconds;
    }
  }
  return NULL;
}

int main(int argc, char **argv) {
  size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
  size_t mebibytes = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
  if (threads == 0 || threads > MAX_THREADS || mebibytes == 0) {
    fprintf(stderr, "usage: probe THREADS MEBIBYTES\n");
    return 2;
  }
  bytes_per_thread = (mebibytes << 20) / threads & ~(size_t)4095;
  buffer = aligned_alloc(1 << 21, (threads * bytes_per_thread + (2u << 21)) & ~(size_t)((1 << 21) - 1));
  if (buffer == NULL || pthread_barrier_init(&barrier, NULL, threads) != 0) {
    fprintf(stderr, "out of memory\n");
    return 1;
  }
  madvise(buffer, threads * bytes_per_thread, MADV_HUGEPAGE);
  ask_for_tiles();
  pthread_t others[MAX_THREADS];
  for (size_t t = 1; t < threads; t++)
    if (pthread_create(&others[t], NULL, work, (void *)t) != 0) return 1;
  work(NULL);
  for (size_t t = 1; t < threads; t++) pthread_join(others[t], NULL);
  int fastest = 0;
  for (int pass = 1; pass < PASSES; pass++)
    if (pass_seconds[pass] < pass_seconds[fastest]) fastest = pass;
  double best = pass_seconds[fastest], alike = 0; /* passes that prefetch as the fastest does */
  for (int pass = fastest % 2; pass < PASSES; pass += 2) alike += pass_seconds[pass];
  printf("{\"read_bytes_per_s\": %.4e, \"read_share\": %.3f", threads * bytes_per_thread / best,
         PASSES / 2 * best / alike);
  for (int p = 0; p < PEAKS; p++) {
    double rate = 0;
    for (size_t t = 0; t < threads; t++) rate += peaks[p].operations / burst_seconds[p][t];
    printf(missing(p) ? ", \"%s_operations_per_s\": null" : ", \"%s_operations_per_s\": %.4e",
           peaks[p].name, rate);
  }
  double share = 0;
  for (size_t t = 0; t < threads; t++)
    share += missing(0) ? 0 : BURSTS * burst_seconds[0][t] / all_seconds[0][t] / threads;
  printf(missing(0) ? ", \"int8_share\": null}\n" : ", \"int8_share\": %.3f}\n", share);
  return 0;
}
