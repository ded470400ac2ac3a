#!/usr/bin/env bash
# The wheel, built from the source distribution and installed alone: its commands work from an empty folder.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
pip_install=(-m pip install --quiet --disable-pip-version-check -c "$checkout/constraints.txt")

"$python" -m venv "$work/build"
"$work/build/bin/python" "${pip_install[@]}" build twine
"$work/build/bin/python" -m build --outdir "$work/dist" "$checkout" >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
"$work/build/bin/python" -m twine check --strict "$work"/dist/*

"$python" -m venv "$work/venv"
"$work/venv/bin/python" "${pip_install[@]}" "$(echo "$work"/dist/*.whl)[report,train]"
export PATH="$work/venv/bin:$PATH"
mkdir "$work/empty"
cd "$work/empty"
alibi-gpt init mine
cd mine
diff -r -x report "$checkout/configs" configs
alibi-gpt train --help >help.txt
grep -q data.train_length_tokens help.txt
alibi-gpt train --config configs/experiment/demo.yaml --set training.max_steps=20 --set training.output_dir=runs/alibi \
    --set data.max_train_tokens=100000 --set data.max_validation_tokens=8192
alibi-gpt extrapolate --models runs/alibi --lengths 128 256 --set max_tokens=4096 --output runs/extrapolation.jsonl
alibi-gpt report --records runs/alibi/training.jsonl runs/extrapolation.jsonl --output-dir runs/report --csv runs/csv
test -s runs/report/report.html
test -s runs/csv/extrapolation.csv
"$work/venv/bin/python" -c "
import modeling_alibi_gpt, pathlib
folder = pathlib.Path(modeling_alibi_gpt.__file__).parent
assert folder.is_relative_to('$work'), folder
assert (folder / 'py.typed').is_file()
"
