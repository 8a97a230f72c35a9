"""Shell completion: the scripts propose the verbs, options, fields and names that there are."""

import shutil
import subprocess

import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.cli.main import main
from goat_jax.cli.parser import VERBS, make_parser
from goat_jax.cli.verbs.completion import SCRIPTS, fields, verbs_of
from goat_jax.config.fields import field_kinds
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.config.shipped import shipped_configs
from goat_jax.data.tasks.registry import reviews

ASK = """
for words in "$@"; do
  read -ra COMP_WORDS <<< "$words"
  [[ "$words" == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _goat_jax; echo "${COMPREPLY[*]}"
done
"""

CASES = {
    "goat-jax tr": "train",
    "goat-jax comple": "completion",
    "goat-jax data ": "list prepare write",
    "goat-jax train --train.ba": "--train.batch-size",
    "goat-jax train --task.text": "--task.text",
    "goat-jax sweep --adapter.rh": "--adapter.rho",
    "goat-jax train --train.epo": "--train.epochs",
    "goat-jax predict --train.ba": "",
    "goat-jax train --config d": "demo digits",
    "goat-jax train --model.dtype ": "float32 bfloat16",
    "goat-jax train --adapter.method goat": "goat goat_plus",
    "goat-jax compare --methods molora": "molora molora_soft",
    "goat-jax train --adapter.router top": "top_k top_p top_k_shared",
    "goat-jax train --logging.utilization t": "true",
    "goat-jax export run out --to p": "peft",
}


def test_bash_completes(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out + ASK
    found = subprocess.run(
        ["bash", "-c", script, "bash", *CASES], capture_output=True, text=True, check=True
    )
    assert dict(zip(CASES, found.stdout.split("\n"), strict=False)) == CASES and not found.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    file = tmp_path / "script"
    file.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(file)], check=True)


def test_every_shell_gets_every_verb_field_and_name():
    verbs, all_fields = list(verbs_of(make_parser())), list(fields())
    config = RunConfig(ModelConfig("m"), reviews())
    wanted = {name.replace("_", "-") for name in field_kinds(config)}
    assert {verb.name for verb in verbs} == set(VERBS)
    assert wanted < {field.name for field in all_fields}
    for write in SCRIPTS.values():
        script = write(verbs, all_fields)
        for name in (*VERBS, *wanted, *METHODS, *shipped_configs()):
            assert name in script, name
