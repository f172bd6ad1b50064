/* Logits of every token of a sequence, without Python. Used by tests/emulated.py.
 *
 *     logits FOLDER THREADS PREFILLED ID... >logits.f32
 *
 * FOLDER is an artifact; the first PREFILLED ids go through the prefill program in its chunks, the others
 * through decode, one by one. Writes float32 [ids, vocabulary].
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "infc.h"

typedef int32_t program(const infc_call *, int32_t, int32_t);
typedef struct { program *run; const infc_call *call; int32_t thread, threads, status; } job;

static void fail(const char *what) {
    fprintf(stderr, "logits: %s\n", what);
    exit(1);
}

static void *memory(int64_t size_bytes) {
    size_t size = (size_t)(size_bytes / 64 + 1) * 64;
    void *p = aligned_alloc(64, size);
    return p ? memset(p, 0, size) : (fail("out of memory"), NULL);
}

static void *work(void *of) {
    job *j = of;
    j->status = j->run(j->call, j->thread, j->threads);
    return NULL;
}

static void run_all(program *run, const infc_call *call, int32_t threads) {
    job jobs[64];
    pthread_t ids[64];
    for (int32_t t = 0; t < threads; t++) {
        jobs[t] = (job){run, call, t, threads, -1};
        if (pthread_create(&ids[t], NULL, work, &jobs[t])) fail("no more threads");
    }
    for (int32_t t = 0; t < threads; t++) {
        pthread_join(ids[t], NULL);
        if (jobs[t].status != INFC_OK) fail("the program refused the call");
    }
}

int main(int argc, char **argv) {
    if (argc < 5) fail("usage: logits FOLDER THREADS PREFILLED ID...");
    char path[4096];
    snprintf(path, sizeof path, "%s/programs/model.so", argv[1]);
    void *library = dlopen(path, RTLD_NOW);
    if (!library) fail(dlerror());
    const infc_model_info *info = dlsym(library, "infc_info");
    program *prefill = dlsym(library, "infc_prefill"), *decode = dlsym(library, "infc_decode");
    snprintf(path, sizeof path, "%s/weights/weights.bin", argv[1]);
    void *weights = mmap(NULL, (size_t)info->weight_bytes, PROT_READ, MAP_SHARED,
                         open(path, O_RDONLY), 0);
    if (weights == MAP_FAILED) fail("the weights cannot be mapped");

    int32_t threads = atoi(argv[2]), prefilled = atoi(argv[3]), count = argc - 4, cancel = 0;
    if (threads < 1 || threads > 64) fail("from 1 to 64 threads");
    int32_t chunk = (int32_t)info->prefill_max_tokens, slot = 0;
    void *prefill_arena = memory(info->prefill_arena_bytes + threads * info->prefill_thread_bytes);
    void *decode_arena = memory(info->decode_arena_bytes + threads * info->decode_thread_bytes);
    void *kv = memory(info->kv_bytes);
    int32_t *ids = memory(4 * chunk), *positions = memory(4 * chunk), *rows = memory(4 * chunk);
    float *logits = memory(4 * chunk * info->vocab_size);
    for (int32_t at = 0, n; at < count; at += n) {
        int32_t is_prefill = at < prefilled, left = prefilled - at;
        n = !is_prefill ? 1 : left < chunk ? left : chunk;
        for (int32_t i = 0; i < n; i++) {
            ids[i] = atoi(argv[4 + at + i]), positions[i] = at + i, rows[i] = i;
        }
        int32_t offsets[2] = {0, n};
        infc_call call = {.abi_version = INFC_ABI_VERSION, .struct_size = sizeof call,
            .n_tokens = n, .n_sequences = 1, .n_logit_rows = n, .output_kind = INFC_LOGITS,
            .tokens = ids, .row_offsets = offsets, .slots = &slot, .positions = positions,
            .logit_rows = rows, .arena = is_prefill ? prefill_arena : decode_arena,
            .weights = weights, .kv = kv, .logits = logits, .cancel = &cancel};
        run_all(is_prefill ? prefill : decode, &call, threads);
        fwrite(logits, 4, (size_t)(n * info->vocab_size), stdout);
    }
    return 0;
}
