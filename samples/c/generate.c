/* Generates tokens with a compiled model, greedily and without Python: token ids in, token ids out.
 *
 *     cc -O2 -I model/programs generate.c -o generate -ldl -lpthread
 *     ./generate model 2 32  2 818 5279 529 7001 563
 *
 * `model` is an artifact as a folder; then come threads, new tokens, and the ids of the prompt.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "infc.h"

typedef int32_t leader(void *, int32_t, const infc_call *, int32_t);
typedef void helper(void *, int32_t, int32_t);

static leader *lead;
static helper *help;
static infc_call call;
static int32_t threads;
static void *team;

static void fail(const char *what) {
    fprintf(stderr, "generate: %s\n", what);
    exit(1);
}

static void *memory(int64_t size_bytes) { /* 64-byte aligned and zeroed, as the programs want it */
    void *p = aligned_alloc(64, (size_t)(size_bytes + 63) / 64 * 64);
    return p ? memset(p, 0, (size_t)size_bytes) : (fail("out of memory"), NULL);
}

static void *serve(void *thread) { /* every thread but the first, until the process ends */
    help(team, (int32_t)(intptr_t)thread, threads);
    return NULL;
}

/* Appends n tokens at position `at`; returns the likeliest one behind them, where it is wanted. */
static int32_t append(int32_t phase, void *arena, const int32_t *ids, int n, int at, int wanted) {
    int32_t offsets[2] = {0, n}, slot = 0, last = n - 1, best = 0, *positions = memory(4 * n);
    for (int i = 0; i < n; i++) positions[i] = at + i;
    call.tokens = ids, call.positions = positions, call.n_tokens = n;
    call.row_offsets = offsets, call.slots = &slot, call.n_sequences = 1;
    call.logit_rows = &last, call.n_logit_rows = wanted;
    call.arena = arena, call.best = &best;
    if (lead(team, phase, &call, threads) != INFC_OK)
        fail("the program refused the call: is a token id out of range?");
    free(positions);
    return best;
}

int main(int argc, char **argv) {
    if (argc < 5) fail("usage: generate FOLDER THREADS NEW_TOKENS ID...");
    char path[4096];
    snprintf(path, sizeof path, "%s/programs/model.so", argv[1]);
    void *library = dlopen(path, RTLD_NOW);
    if (!library) fail(dlerror());
    const infc_model_info *info = dlsym(library, "infc_info");
    lead = (leader *)dlsym(library, "infc_lead"), help = (helper *)dlsym(library, "infc_help");
    if (info->abi_version != INFC_ABI_VERSION) fail("the model has another program ABI");
    snprintf(path, sizeof path, "%s/weights/weights.bin", argv[1]);
    size_t size = (size_t)info->weight_bytes;
    void *weights = mmap(NULL, size, PROT_READ, MAP_SHARED, open(path, O_RDONLY), 0);
    if (weights == MAP_FAILED) fail("the weights cannot be mapped");

    int32_t prompt = argc - 4, new_tokens = atoi(argv[3]), *ids = memory(4 * prompt), cancel = 0;
    threads = atoi(argv[2]);
    if (new_tokens < 1) fail("expected at least one new token");
    if (threads < 1 || threads > info->max_threads) fail("too few or too many threads");
    if (prompt + new_tokens > info->max_context) fail("the context is too small");
    for (int i = 0; i < prompt; i++) ids[i] = atoi(argv[4 + i]);
    call = (infc_call){.abi_version = INFC_ABI_VERSION, .struct_size = sizeof call,
                       .output_kind = INFC_ARGMAX, .weights = weights, .cancel = &cancel,
                       .kv = memory(info->kv_bytes), .logits = memory(4 * info->vocab_size)};
    void *prefill_arena = memory(info->prefill_arena_bytes + threads * info->prefill_thread_bytes);
    void *decode_arena = memory(info->decode_arena_bytes + threads * info->decode_thread_bytes);
    team = memory(INFC_TEAM_BYTES);
    pthread_t started;
    for (intptr_t thread = 1; thread < threads; thread++)
        if (pthread_create(&started, NULL, serve, (void *)thread)) fail("no more threads");
    int32_t next = 0, chunk = (int32_t)info->prefill_max_tokens;
    for (int at = 0, n; at < prompt; at += n) {
        n = prompt - at < chunk ? prompt - at : chunk;
        next = append(INFC_PREFILL, prefill_arena, ids + at, n, at, at + n == prompt);
    }
    for (int at = prompt; at < prompt + new_tokens; at++) {
        printf("%d\n", next);
        if (at + 1 < prompt + new_tokens) next = append(INFC_DECODE, decode_arena, &next, 1, at, 1);
    }
    return 0; /* ends the waiting threads, and gives everything back */
}
