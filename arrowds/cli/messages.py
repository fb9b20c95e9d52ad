"""Messages of the library in the words of the command line: options where the library names Python arguments."""

from __future__ import annotations

import re

_NAMED_AGAIN = "name it once more with --metric or --expr, or use the versions of arrowds and Polars that wrote it"

SPELLINGS: dict[str, str] = {
    r"arrowds\.analyze\(\.\.\., overwrite=True\)": "arrowds analyze ... --overwrite",
    r"arrowds\.analyze\(source, metrics, (?:'([^']*)'|\"([^\"]*)\")\)": r"arrowds analyze DATA... -o \1\2 --metric ...",
    r"run the same arrowds\.analyze\(\.\.\.\) again to finish it": (
        "run the same arrowds analyze again, or arrowds map and reduce, to finish it"
    ),
    r"arrowds\.versions\((?:'([^']*)'|\"([^\"]*)\")\)": r"arrowds versions \1\2",
    r"arrowds\.vacuum\(unfinished=True\)": "arrowds vacuum INDEX --unfinished",
    r"arrowds\.add_metrics\b": "arrowds add-metric",
    r"find duplicates again \(arrowds\.find_duplicates\), or hand over values of all samples \(arrowds\.add_values\)": (
        "find duplicates again (arrowds duplicates INDEX --find)"
    ),
    r"arrowds\.move_data\((?:'([^']*)'|\"([^\"]*)\"), old, new\)": r"arrowds move-data \1\2 OLD NEW",
    r"call arrowds\.find_duplicates\(path\) first": "pass --find",
    r"pass index=arrowds\.open_index\(\.\.\.\)": "pass --index INDEX",
    r"pass run=FOLDER": "pass --run FOLDER",
    r"pass overwrite=True": "pass --overwrite",
    r"with overwrite=True": "with arrowds analyze --overwrite",
    r"pass refresh=True": "pass --refresh",
    r"pass allow_files=True": "pass --allow-files",
    r'declare it with nulls="keep"': "pass --keep-nulls",
    r"give one of them another name=": "give one of them another name, as in NAME=KIND:COLUMN",
    r"pass at least one of arrowds\.metrics": "pass --metric or --expr",
    r"pass metrics=\[\.\.\.\] with the same metric": "append with that code, through arrowds.append in Python",
    r"which only its code can run; pass metrics=\[\.\.\.\]": "which only its code can run, through arrowds in Python",
    r"can't be opened from its description; pass source=\.\.\.": (
        "can be opened only by the Python code that planned it"
    ),
    r"(does not know|can't be read \(.*\)); pass metrics=\[\.\.\.\]": rf"\1; {_NAMED_AGAIN}",
    r"leave it out with metrics=\[[^\]]*\]": "leave it out by naming the others with --metric",
    r"choose with metrics=\[\.\.\.\]": "choose with --metric",
    r"rank must lie in \[0, world_size=(\d+)\)": r"--rank must lie in [0, --world-size \1)",
    r"with engine='torch' the ranks are the workers; leave workers=None": (
        "with --engine torch the ranks are the workers; leave out --workers"
    ),
    r"engine='torch' needs ranks: start the script with torchrun, .* first": (
        "--engine torch needs ranks: start the command with torchrun --no-python, or with srun"
    ),
    r"pass RayEngine\(runtime_env=\.\.\.\)": "install it there",
    r"pass cache_dir=\.\.\. \(or set (\S+)\) on another disk": r"set \1 to a folder on another disk",
    r"pass cache_dir=\.\.\. to keep": "set ARROWDS_CACHE_DIR to keep",
    r"pass log=False": "pass --no-log",
    r"pass compare_content=True": "pass --compare-content",
    r"got between=": "got --between ",
    r"pass num_samples": "pass --num-samples",
    r'pass quoting="none"': "pass --quoting none",
    r"resume with arrowds\.open_index\(.*, version=.*\), or continue .* by load_state_dict\(.*\)": (
        "start over with --no-resume, or resume in Python with that version"
    ),
    r"num_samples is (\d+), but": r"--num-samples is \1, but",
    r"storage_options belong to a URL": "--storage-option belongs to a URL",
    r"read it with index\.totals\[(?:'([^']*)'|\"([^\"]*)\")\]": r"read it with arrowds sql: select * from total_\1\2",
    r"query this index with index\.scan\(\)": "query this index in Python, with index.scan()",
    r"use arrowds\.sources\.TokenizedSource \(--tokenizer\) or arrowds\.metrics\.expr\(.*\)": (
        "use --tokenizer, or --expr 'n_chars=length(text)'"
    ),
    r"declare a dtype that an index can hold": "cast it in --expr to a type that an index can hold",
    r"declare its dtype": "cast it in --expr",
    r"which by=(\S+) needs": r"which --by \1 needs",
    r"give what arrowds\.stats\.aio\.read_logs returned": "make it with arrowds aio import",
}
"""What replaces a hint of the library, by the regular expression that finds it."""


def spelled(message: str) -> str:
    """Return a message of the library with its hints as options and commands.

    >>> spelled("x holds an index of other data; choose another path, or pass overwrite=True")
    'x holds an index of other data; choose another path, or pass --overwrite'
    """
    for hint, spelling in SPELLINGS.items():
        message = re.sub(hint, spelling, message)
    return message


def one_line(message: str) -> str:
    """Return a message of several lines as one, without the lines that only point at a column."""
    lines = [line.strip() for line in message.splitlines() if line.strip(" ^")]
    return "; ".join(lines).replace(":; ", ": ")
