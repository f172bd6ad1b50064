/* Cycles of an AMX tile load, a product, and both together, in turns: what a core that is shared lends.
 * Prints JSON lines. gcc -O2 -march=sapphirerapids tiles.c -o tiles && ./tiles
 * Cycles are those of the time stamp counter, which is near but not the core's clock. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

struct config { uint8_t palette, start, reserved[14]; uint16_t column_bytes[16]; uint8_t rows[16]; };
static struct config config __attribute__((aligned(64)));

#define LOADS "tileloadd (%0,%1,1),%%tmm4\n tileloadd (%0,%1,1),%%tmm5\n" \
              "tileloadd (%0,%1,1),%%tmm6\n tileloadd (%0,%1,1),%%tmm7\n"
#define DOTS "tdpbf16ps %%tmm6,%%tmm4,%%tmm0\n tdpbf16ps %%tmm7,%%tmm4,%%tmm1\n" \
             "tdpbf16ps %%tmm6,%%tmm5,%%tmm2\n tdpbf16ps %%tmm7,%%tmm5,%%tmm3\n"
#define CYCLES(code, result) do { \
    uint64_t start = __rdtsc(); \
    for (int i = 0; i < 100000; i++) __asm__ volatile(code :: "r"(data), "r"(64L) : "memory"); \
    result = (__rdtsc() - start) / 400000.0; } while (0)

int main(void) {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) { perror("no tiles"); return 1; }
    config.palette = 1;
    for (int i = 0; i < 8; i++) { config.rows[i] = 16; config.column_bytes[i] = 64; }
    __asm__ volatile("ldtilecfg %0" :: "m"(config));
    char *data = aligned_alloc(4096, 4096);
    memset(data, 0, 4096);
    for (int turn = 0; turn < 40; turn++) {
        double load, dot, both;
        CYCLES(LOADS, load);
        CYCLES(DOTS, dot);
        CYCLES(LOADS DOTS, both);
        printf("{\"turn\": %d, \"load\": %.1f, \"dot\": %.1f, \"load_and_dot\": %.1f}\n", turn, load, dot, both);
    }
    return 0;
}
