"""Converts a model of any published layout, or an autoencoder alone, to the one that audiodiff and diffusers read, and says what it changed.

    python -m audiodiff_core.checkpoint SOURCE DESTINATION

SOURCE is a folder, an s3:// or gs:// URI, a Hugging Face id, or the file of a CompVis LDM autoencoder (.ckpt). Ends with one line of JSON;
the exit status is 0 when all is done, 2 for a mistake in what was asked, 1 otherwise.
"""

import argparse
import json
import sys

from audiodiff_core.checkpoint.convert import convert

DONE, FAILED, MISTAKE = 0, 1, 2


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m audiodiff_core.checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="what is converted; it stays as it is")
    parser.add_argument("destination", metavar="DESTINATION", help="folder or URI to write, which must not exist yet")
    options = parser.parse_args()
    try:
        conversion = convert(options.source, options.destination)
    except ValueError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return MISTAKE
    except OSError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return FAILED
    for change in conversion.changes:
        print(change)
    print(
        json.dumps(
            {
                "verb": "convert",
                "kind": conversion.kind,
                "destination": options.destination,
                "changes": len(conversion.changes),
            },
            sort_keys=True,
        )
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
