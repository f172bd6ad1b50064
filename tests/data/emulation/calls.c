/* Calls functions of a shared object as its standard input says, until it ends. Used by tests/emulated.py.
 *
 *     calls PROGRAM.so
 *
 * A call is: bytes of the name (int64), the name, operands (int64), and for each operand its bytes (int64)
 * and the bytes, or -1 and a number (int64). All memory comes back on standard output after the call, in
 * order. Operands are int64 or pointers, 64-byte aligned; there are at most 16.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { OPERANDS = 16 };
typedef void function(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                      int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

static void fail(const char *what) {
    fprintf(stderr, "calls: %s\n", what);
    exit(1);
}

static void take(void *to, int64_t size) {
    if (fread(to, 1, (size_t)size, stdin) != (size_t)size) fail("the input is cut short");
}

static int64_t number(void) {
    int64_t value;
    take(&value, sizeof value);
    return value;
}

int main(int argc, char **argv) {
    void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library) fail(argc == 2 ? dlerror() : "usage: calls PROGRAM.so");
    for (int64_t length; fread(&length, 1, sizeof length, stdin) == sizeof length;) {
        char name[256] = {0};
        if (length >= (int64_t)sizeof name) fail("a name is too long");
        take(name, length);
        function *called = (function *)dlsym(library, name);
        int64_t count = number(), sizes[OPERANDS], o[OPERANDS] = {0};
        if (!called || count > OPERANDS) fail(name);
        for (int64_t i = 0; i < count; i++) {
            sizes[i] = number();
            if (sizes[i] < 0) {
                o[i] = number();
                continue;
            }
            void *memory = aligned_alloc(64, (size_t)(sizes[i] / 64 + 1) * 64);
            if (!memory) fail("out of memory");
            take(memory, sizes[i]);
            o[i] = (int64_t)(intptr_t)memory;
        }
        called(o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], o[9], o[10], o[11], o[12],
               o[13], o[14], o[15]);
        for (int64_t i = 0; i < count; i++) {
            if (sizes[i] < 0) continue;
            fwrite((void *)(intptr_t)o[i], 1, (size_t)sizes[i], stdout);
            free((void *)(intptr_t)o[i]);
        }
        fflush(stdout);
    }
    return 0;
}
