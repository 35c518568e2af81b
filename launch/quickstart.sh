#!/usr/bin/env bash
# From nothing to a trained model in a few minutes: installs what is missing, builds megac, prepares a dataset from real
# text, trains a small GPT with TP=2 x PP=2 on four CPU ranks, evaluates it and writes text with it. Asks nothing.
set -euo pipefail

usage() {
    cat <<'EOT'
usage: launch/quickstart.sh [--text FILE] [--iters N] [--out DIR] [--build-dir DIR] [--no-install] [--dry-run]
  --text FILE      text to learn (blank lines part documents); default: the King James Bible (bible-kjv-text)
  --iters N        training steps (default 900: about two minutes on two cores)
  --out DIR        where the dataset, the checkpoint and the metrics go (default BUILD/quickstart); an earlier
                   quickstart's files there are replaced
  --build-dir DIR  build folder (default: build in the repository)
  --no-install     leave the system's packages alone
  --dry-run        print the commands, run none
EOT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
caller=$PWD
text='' iters=900 out='' build=$root/build install=true dry=false
absolute() {
    case $1 in
    /*) echo "$1" ;;
    *) echo "$caller/$1" ;;
    esac
}
while [ $# -gt 0 ]; do
    case $1 in
    --text | --iters | --out | --build-dir)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        case $1 in
        --text) text=$(absolute "$2") ;;
        --iters) iters=$2 ;;
        --out) out=$(absolute "$2") ;;
        --build-dir) build=$(absolute "$2") ;;
        esac
        shift
        ;;
    --no-install) install=false ;;
    --dry-run) dry=true ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
case $iters in
'' | *[!0-9]* | 0) echo "quickstart.sh: --iters $iters: give a number of steps above 0" >&2; exit 2 ;;
esac
if [ -n "$text" ] && [ ! -r "$text" ]; then
    echo "quickstart.sh: --text $text: no such readable file" >&2
    exit 2
fi
out=${out:-$build/quickstart}
mark=$out/.megac-quickstart
if [ -d "$out" ] && [ ! -e "$mark" ] && [ -n "$(ls -A "$out")" ]; then
    echo "quickstart.sh: --out $out is not empty and no earlier quickstart's; give another directory" >&2
    exit 2
fi

exec </dev/null
cd "$root"
# shellcheck source=launch/ompi_env.sh
. launch/ompi_env.sh

started=$SECONDS
step() {
    printf '\n== %3ds  %s\n' $((SECONDS - started)) "$*"
}
# Shows a command, then runs it.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    $dry || "$@"
}
# The same for what the user need not read: the output goes to a file and is shown only after a failure.
run_quietly() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    $dry || "$@" >>"$build/quickstart.log" 2>&1 || {
        tail -n 40 "$build/quickstart.log" >&2
        echo "quickstart.sh: failed: $* (all of it: $build/quickstart.log)" >&2
        exit 1
    }
}

step "1/6 packages"
kinds=(build)
[ -n "$text" ] || kinds+=(demo)
if $install; then
    run bash launch/install.sh "${kinds[@]}"
fi

step "2/6 build"
$dry || mkdir -p "$build"
if [ ! -f "$build/build.ninja" ]; then
    meson=meson
    $dry || meson=$(bash launch/meson.sh "$build/venv")
    # CPU ranks only: nvcc would take minutes.
    run_quietly "$meson" setup "$build" -Dbuildtype=release -Dwerror=false -Dtests=false -Dcuda=disabled
fi
run_quietly ninja -C "$build"
megac=$build/megac

step "3/6 dataset"
run mkdir -p "$out"
run touch "$mark"
# One verse a line, a chapter a document.
bible_text() {
    bible -f gen1:1-rev22:21 | awk '{
        chapter = $1
        sub(/:.*/, "", chapter)
        if (NR > 1 && chapter != last) print ""
        last = chapter
        sub(/^[^ ]+ /, "")
        print
    }'
}
if [ -z "$text" ]; then
    text=$out/kjv.txt
    echo "+ bible -f gen1:1-rev22:21 | awk ... > $text"
    if ! $dry; then
        command -v bible >/dev/null || {
            echo "quickstart.sh: the program bible (package bible-kjv) is missing; give --text FILE" >&2
            exit 1
        }
        bible_text >"$text.part"
        mv "$text.part" "$text"
    fi
fi
run "$megac" prepare --input "$text" --input-format text --output-prefix "$out/text" --overwrite \
    --tokenizer-type ByteTokenizer --append-eod --split-documents-on blank-line
run "$megac" inspect "$out/text.h5"

step "4/6 training: GPT, 4 layers of 128, tensor parallel 2 x pipeline parallel 2"
run rm -rf "$out/checkpoint"
run mpirun --bind-to none -n 4 "$megac" train --device cpu \
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel \
    --num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 128 --max-position-embeddings 128 \
    --hidden-dropout 0 --attention-dropout 0 --micro-batch-size 4 --global-batch-size 16 --train-iters "$iters" \
    --lr 2e-3 --min-lr 2e-4 --lr-decay-style cosine --lr-warmup-iters $((iters < 40 ? iters / 2 : 20)) \
    --data-path "$out/text" --split 980,10,10 --eval-interval 100 --eval-iters 10 --log-interval 20 \
    --save "$out/checkpoint" --save-interval "$iters" --metrics-file "$out/metrics.jsonl" --num-threads 1

step "5/6 evaluation, on one rank"
run "$megac" eval --device cpu --load "$out/checkpoint" --data-path "$out/text" --split 980,10,10 --micro-batch-size 4 \
    --eval-iters 50

step "6/6 text from the model"
run "$megac" generate --device cpu --load "$out/checkpoint" --prompt "In the beginning" --max-new-tokens 300 \
    --temperature 0.8

step "done"
cat <<EOT
dataset     $out/text.h5
checkpoint  $out/checkpoint
metrics     $out/metrics.jsonl
EOT
