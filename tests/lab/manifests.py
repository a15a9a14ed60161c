#!/usr/bin/python3
"""manifests.py SCHEMA FILE...: checks manifests against the schema of their kinds, and prints them all as JSON: kind, manifest.

Needs Debian's python3-yaml python3-jsonschema.
"""

import json
import sys

import jsonschema
import yaml

with open(sys.argv[1]) as file:
    schema = json.load(file)
manifests = {}
for path in sys.argv[2:]:
    with open(path) as file:
        manifest = yaml.safe_load(file)
    kind = manifest["kind"]
    of_kind = {**schema["kinds"][kind], "definitions": schema["definitions"]}
    for error in jsonschema.Draft7Validator(of_kind).iter_errors(manifest):
        sys.exit(f"{path}: {'.'.join(map(str, error.absolute_path))}: {error.message}")
    manifests[kind] = manifest
print(json.dumps(manifests))
