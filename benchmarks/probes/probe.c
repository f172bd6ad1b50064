/* What the machine gives at this moment: read bandwidth, and int8 dot products a second.
 *
 * Usage: probe THREADS MEBIBYTES. Prints one JSON object. The buffer should be far larger than the
 * last-level cache. Each thread reads its own half once, best of three passes; the dot product is
 * vpdpbusd on 512-bit registers, or 256-bit where there is no AVX-512 VNNI, or null.
 */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_THREADS = 256, PASSES = 3, BURSTS = 40, DOT_STEPS = 150000, DOT_CHAINS = 12 };

static pthread_barrier_t barrier;
static char *buffer;
static size_t bytes_per_thread;
static double pass_seconds[PASSES], dot_seconds[MAX_THREADS];
static volatile int64_t sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static int64_t read_all(const char *p, size_t bytes) {
#if defined(__AVX512F__)
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (size_t i = 0; i < bytes; i += 256) {
    _mm_prefetch(p + i + 4096, _MM_HINT_T0);
    _mm_prefetch(p + i + 4160, _MM_HINT_T0);
    _mm_prefetch(p + i + 4224, _MM_HINT_T0);
    _mm_prefetch(p + i + 4288, _MM_HINT_T0);
    a = _mm512_xor_si512(a, _mm512_load_si512(p + i));
    b = _mm512_xor_si512(b, _mm512_load_si512(p + i + 64));
    c = _mm512_xor_si512(c, _mm512_load_si512(p + i + 128));
    d = _mm512_xor_si512(d, _mm512_load_si512(p + i + 192));
  }
  a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
  return _mm512_reduce_add_epi64(a);
#else
  int64_t s[4] = {0};
  for (size_t i = 0; i < bytes; i += 32)
    for (int k = 0; k < 4; k++) {
      int64_t v;
      memcpy(&v, p + i + 8 * k, 8);
      s[k] ^= v;
    }
  return s[0] ^ s[1] ^ s[2] ^ s[3];
#endif
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
#else
#define DOT_LANES 0
#endif

static void run_dots(void) {
#if DOT_LANES
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
#endif
}

static void *work(void *argument) {
  size_t thread = (size_t)argument;
  char *mine = buffer + thread * bytes_per_thread;
  memset(mine, 1, bytes_per_thread);
  for (int pass = 0; pass < PASSES; pass++) {
    pthread_barrier_wait(&barrier);
    double start = now();
    sink += read_all(mine, bytes_per_thread);
    pthread_barrier_wait(&barrier);
    if (thread == 0) pass_seconds[pass] = now() - start;
  }
  /* Short bursts, the best of many: one that is interrupted says nothing about the peak. */
  for (int burst = 0; burst < BURSTS; burst++) {
    pthread_barrier_wait(&barrier);
    double start = now();
    run_dots();
    double seconds = now() - start;
    if (burst == 0 || seconds < dot_seconds[thread]) dot_seconds[thread] = seconds;
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
  pthread_t others[MAX_THREADS];
  for (size_t t = 1; t < threads; t++)
    if (pthread_create(&others[t], NULL, work, (void *)t) != 0) return 1;
  work(NULL);
  for (size_t t = 1; t < threads; t++) pthread_join(others[t], NULL);
  double best = pass_seconds[0];
  for (int pass = 1; pass < PASSES; pass++)
    if (pass_seconds[pass] < best) best = pass_seconds[pass];
  printf("{\"read_bytes_per_s\": %.4e, \"int8_operations_per_s\": ",
         threads * bytes_per_thread / best);
  double dots = 0;
  for (size_t t = 0; t < threads; t++)
    dots += 2.0 * DOT_LANES * DOT_CHAINS * DOT_STEPS / dot_seconds[t];
  if (DOT_LANES)
    printf("%.4e}\n", dots);
  else
    printf("null}\n");
  return 0;
}
