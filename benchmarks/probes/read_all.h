/* A loop that only reads, as fast as this processor's instructions let it. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* `ahead` of 0 prefetches nothing: on some processors that is faster. */
static inline __attribute__((always_inline)) int64_t read_all(const char *p, size_t bytes,
                                                              size_t ahead) {
#if defined(__AVX512F__)
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (size_t i = 0; i < bytes; i += 256) {
    if (ahead) _mm_prefetch(p + i + ahead, _MM_HINT_T0);
    if (ahead) _mm_prefetch(p + i + ahead + 64, _MM_HINT_T0);
    if (ahead) _mm_prefetch(p + i + ahead + 128, _MM_HINT_T0);
    if (ahead) _mm_prefetch(p + i + ahead + 192, _MM_HINT_T0);
    a = _mm512_xor_si512(a, _mm512_load_si512(p + i));
    b = _mm512_xor_si512(b, _mm512_load_si512(p + i + 64));
    c = _mm512_xor_si512(c, _mm512_load_si512(p + i + 128));
    d = _mm512_xor_si512(d, _mm512_load_si512(p + i + 192));
  }
  a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
  return _mm512_reduce_add_epi64(a);
#elif defined(__AVX2__)
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i < bytes; i += 128) {
    if (ahead) _mm_prefetch(p + i + ahead, _MM_HINT_T0);
    if (ahead) _mm_prefetch(p + i + ahead + 64, _MM_HINT_T0);
    a = _mm256_xor_si256(a, _mm256_load_si256((const __m256i *)(p + i)));
    b = _mm256_xor_si256(b, _mm256_load_si256((const __m256i *)(p + i + 32)));
    c = _mm256_xor_si256(c, _mm256_load_si256((const __m256i *)(p + i + 64)));
    d = _mm256_xor_si256(d, _mm256_load_si256((const __m256i *)(p + i + 96)));
  }
  a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return _mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1) ^ _mm256_extract_epi64(a, 2) ^
         _mm256_extract_epi64(a, 3);
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
