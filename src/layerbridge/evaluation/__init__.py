"""From a bridge to numbers: predict -> predictions/LANG.jsonl -> score -> results.json -> compare."""
