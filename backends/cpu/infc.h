/* The C interface of a model compiled by infc for a CPU: program ABI, version 1.
 *
 * A program is run by `threads` threads together: each calls it with the same `call`, its own number
 * `thread` in [0, threads) and the same `threads`; all return the same status. Nothing is allocated
 * and no system call is made besides futex, where a thread has waited for another for long, and in a
 * model compiled for AMX arch_prctl, which asks for its tiles; INFC_NO_TILES where that is refused.
 *
 * infc_lead and infc_help keep such threads between calls: each helper thread runs infc_help, which
 * serves every infc_lead of the same team and returns when one says INFC_DISMISS. A helper sleeps
 * while there is nothing to do; a call that follows soon finds it awake. infc_lead runs thread 0 in
 * the caller and returns when no thread uses the call any more. One call of a team at a time.
 *
 * Memory is the caller's: `arena` of <phase>_arena_bytes + threads * <phase>_thread_bytes, 64-byte
 * aligned, zeroed once before its first use; `kv` of kv_bytes, 64-byte aligned; `weights` is the file
 * weights/weights.bin of the artifact, mapped at a 64-byte aligned address. Calls that share an arena
 * or a kv must not overlap.
 */
#ifndef INFC_H
#define INFC_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { INFC_ABI_VERSION = 1 };
enum { INFC_LOGITS = 0, INFC_ARGMAX = 1, INFC_TOP_K = 2 };
enum { INFC_OK = 0, INFC_WRONG_ABI = 1, INFC_OUT_OF_RANGE = 2, INFC_CANCELLED = 3, INFC_NO_TILES = 4 };

typedef struct infc_call {
    uint32_t abi_version;         /* INFC_ABI_VERSION */
    uint32_t struct_size;         /* sizeof(infc_call) */
    int32_t n_tokens;             /* rows: the tokens of all sequences, one after the other */
    int32_t n_sequences;
    int32_t n_logit_rows;         /* rows whose logits are wanted; 0 where only the cache is filled */
    int32_t output_kind;          /* INFC_LOGITS, INFC_ARGMAX or INFC_TOP_K */
    const int32_t *tokens;        /* [n_tokens] */
    const int32_t *row_offsets;   /* [n_sequences + 1]: where each sequence starts; 0 ... n_tokens */
    const int32_t *slots;         /* [n_sequences]: the KV slot of each sequence, distinct */
    const int32_t *positions;     /* [n_tokens]: consecutive within a sequence */
    const int32_t *logit_rows;    /* [n_logit_rows]: indices of rows */
    void *arena;
    const void *weights;
    void *kv;
    float *logits;                /* [n_logit_rows, vocab_size], written for INFC_LOGITS; in other
                                     calls room for them, which may be used */
    int32_t *best;                /* [n_logit_rows], written for INFC_ARGMAX */
    const volatile int32_t *cancel; /* never NULL; set to non-zero from any thread to give up */
    uint64_t *trace;              /* NULL, or [1 + kernels of a call]: the cycle counter of thread 0
                                     at the start and behind each kernel */
    float *top_logits;            /* [n_logit_rows, max_top_k], the first top_k written for INFC_TOP_K */
    int32_t *top_ids;             /* [n_logit_rows, max_top_k]: their tokens, the best first */
    int32_t top_k;                /* for INFC_TOP_K: 1 ... max_top_k */
} infc_call;

typedef struct infc_model_info {
    int64_t abi_version, vocab_size, max_context, max_slots, max_threads;
    int64_t prefill_max_tokens, prefill_max_logit_rows, prefill_arena_bytes, prefill_thread_bytes;
    int64_t prefill_kernel_calls;
    int64_t decode_max_tokens, decode_max_logit_rows, decode_arena_bytes, decode_thread_bytes;
    int64_t decode_kernel_calls;
    int64_t kv_bytes, weight_bytes, max_top_k;
} infc_model_info;

extern const infc_model_info infc_info;

int32_t infc_prefill(const infc_call *call, int32_t thread, int32_t threads);
int32_t infc_decode(const infc_call *call, int32_t thread, int32_t threads);

enum { INFC_PREFILL = 0, INFC_DECODE = 1, INFC_DISMISS = -1 };
enum { INFC_TEAM_BYTES = 192 }; /* of `team`: 64-byte aligned, zeroed once before its first use */

/* `phase` is INFC_PREFILL, INFC_DECODE, or INFC_DISMISS with a `call` that is not looked at. */
int32_t infc_lead(void *team, int32_t phase, const infc_call *call, int32_t threads);
/* For each `thread` in [1, threads); join them before the memory of a dismissed team is freed. */
void infc_help(void *team, int32_t thread, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
