/* How near a plain read's bandwidth a product with streamed weights can come on a core that is shared.
 * Reads 192 MiB with all threads, in turns: adding up what it reads, and multiplying 4-bit weights packed
 * as infc packs Q4_0 (288 bytes for 32 numbers of 16 rows) with one a8 row, prefetching 4 KiB ahead into
 * the first cache, or 16 KiB ahead into the second. Prints JSON lines, bytes a second of each; `cached` is
 * the product alone, on one thread, with weights that stay in the second cache.
 * gcc -O3 -march=native -pthread products.c -o products && ./products THREADS */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GROUPS = 32, CHUNK = 288, PANEL = CHUNK * GROUPS, TURNS = 25, KINDS = 3, CACHED_PANELS = 60 };
static const size_t size = (size_t)192 << 20;
static char *buffer;
static int threads;
static pthread_barrier_t barrier;
static int32_t codes[GROUPS * 8];
static float scales[GROUPS];
static volatile float sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void plain(const char *p, size_t bytes) {
    __m512i sums[4] = {0};
    for (size_t at = 0; at < bytes; at += 256)
        for (int i = 0; i < 4; i++) {
            _mm_prefetch(p + at + 4096 + 64 * i, _MM_HINT_T0);
            sums[i] = _mm512_add_epi32(sums[i], _mm512_loadu_si512(p + at + 64 * i));
        }
    sums[0] = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
    sink += _mm512_reduce_add_epi32(sums[0]);
}

#define PRODUCT(NAME, DISTANCE, HINT) \
    static void NAME(const char *p, size_t bytes) { \
        const __m512i low = _mm512_set1_epi8(15); \
        for (size_t at = 0; at + PANEL <= bytes; at += PANEL) { \
            __m512 total = _mm512_setzero_ps(); \
            for (int g = 0; g < GROUPS; g++) { \
                const char *chunk = p + at + CHUNK * g; \
                for (int i = 0; i < 5; i++) _mm_prefetch(chunk + DISTANCE + 64 * i, HINT); \
                __m512i dot = _mm512_setzero_si512(); \
                for (int i = 0; i < 4; i++) { \
                    __m512i both = _mm512_loadu_si512(chunk + 32 + 64 * i); \
                    __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low); \
                    both = _mm512_and_si512(both, low); \
                    dot = _mm512_dpbusd_epi32(dot, both, _mm512_set1_epi32(codes[8 * g + 2 * i])); \
                    dot = _mm512_dpbusd_epi32(dot, high, _mm512_set1_epi32(codes[8 * g + 2 * i + 1])); \
                } \
                __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)chunk)); \
                scale = _mm512_mul_ps(scale, _mm512_set1_ps(scales[g])); \
                total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, total); \
            } \
            sink += _mm512_reduce_add_ps(total); \
        } \
    }
PRODUCT(near_product, 4096, _MM_HINT_T0)
PRODUCT(far_product, 16384, _MM_HINT_T1)

static void (*const kinds[KINDS])(const char *, size_t) = {plain, near_product, far_product};

static void *run(void *argument) {
    long thread = (long)argument;
    size_t part = size / threads / PANEL * PANEL;
    for (int turn = 0; turn < TURNS; turn++) {
        double rate[KINDS];
        for (int kind = 0; kind < KINDS; kind++) {
            pthread_barrier_wait(&barrier);
            double start = now();
            kinds[kind](buffer + thread * part, part);
            pthread_barrier_wait(&barrier);
            rate[kind] = part * threads / (now() - start);
        }
        double start = now();
        if (thread == 0) {
            for (int i = 0; i < 20; i++) far_product(buffer, (size_t)PANEL * CACHED_PANELS);
            printf("{\"threads\": %d, \"turn\": %d, \"read\": %.3e, \"product_4k_first\": %.3e, "
                   "\"product_16k_second\": %.3e, \"cached\": %.3e}\n", threads, turn, rate[0], rate[1],
                   rate[2], 20.0 * PANEL * CACHED_PANELS / (now() - start));
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    threads = count > 1 ? atoi(arguments[1]) : 1;
    buffer = aligned_alloc(1 << 21, size + (1 << 21));
    memset(buffer, 1, size + (1 << 21));
    pthread_barrier_init(&barrier, NULL, threads);
    pthread_t others[64];
    for (long i = 1; i < threads; i++) pthread_create(&others[i], NULL, run, (void *)i);
    run(0);
    for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
    return 0;
}
