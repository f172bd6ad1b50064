#!/bin/sh
# Compiles a model once, then runs the artifact as often as you like.
#
#     samples/compile_and_generate.sh MODEL "The capital of France is"
#
# MODEL is a GGUF file or a Hugging Face folder. The artifact appears beside it, once.
set -eu

model=$1
prompt=$2
artifact=${model%.gguf}.infc

if [ ! -e "$artifact" ]; then
    # Limits bound the memory plan: a session of this artifact holds at most so many tokens.
    infc compile "$model" --target cpu -o "$artifact" --max-context "${MAX_CONTEXT:-4096}" >&2
fi

# The text goes to stdout, speeds go to stderr. The same seed gives the same text.
infc run "$artifact" --prompt "$prompt" --max-new-tokens "${NEW_TOKENS:-32}" \
    --temperature 0.8 --top-p 0.95 --seed 1
