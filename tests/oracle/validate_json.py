#!/usr/bin/python3
"""Checks each line of a file against a JSON Schema, and prints how many there are: validate_json.py SCHEMA FILE."""
import json
import sys

import jsonschema


def once(pairs):
    """A name that comes twice in an object is lost to most readers."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"a name comes twice among {names}")
    return dict(pairs)


def main(schema_path, lines_path):
    with open(schema_path, encoding="utf-8") as file:
        schema = json.load(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    count = 0
    with open(lines_path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                sys.exit(f"the last line is not whole: {line[-200:]!r}")
            for error in validator.iter_errors(json.loads(line, object_pairs_hook=once)):
                sys.exit(f"{error.json_path}: {error.message[:300]}\n{line}")
            count += 1
    print(count)


main(*sys.argv[1:])
