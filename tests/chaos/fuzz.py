"""Coverage-guided fuzzing (atheris, libFuzzer): inputs that reach new code are kept and changed again.

    PYTHONPATH=.:tests:tests/chaos python tests/chaos/fuzz.py FOLDER -runs=20000

FOLDER keeps the inputs. The first byte chooses a check of test_fuzz.py, the others are its file or, with zero
bytes between them, its arguments. Files are written to the working directory.
"""

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["config", "text.formats", "text.corpora", "tokenizer"]):
    import test_fuzz


def check_arguments(content: bytes) -> str:
    script, *arguments = content.split(b"\0")
    script = test_fuzz.SCRIPTS[len(script) % len(test_fuzz.SCRIPTS)]
    return test_fuzz.check_arguments(script, [os.fsdecode(argument) for argument in arguments])


CHECKS = [check_arguments, test_fuzz.check_rows, test_fuzz.check_tokenizer_file]
SEEDS = [
    b"\0\0--max_iters=10\0--bias\0config/tiny.py\0--learning_rate=1e-3",
    b'\1{"text": "a"}\n{"prompt": "a", "response": "b"}\n',
    b'\1{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    b'\1[{"text": "a"},\n{"text": "b"}]\n',
    b'\2{"type": "char", "tokens": ["a"], "special_tokens": ["b"], "pattern": ""}',
    b"\2[]",
    b"\2" + test_fuzz.CHARACTERS.to_json().encode("utf-8"),
]


def one_input(content: bytes) -> None:
    if content:
        CHECKS[content[0] % len(CHECKS)](content[1:])


if __name__ == "__main__":
    for i, seed in enumerate(SEEDS):
        Path(sys.argv[1], f"seed_{i}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
