"""Convert a model or autoencoder from any published layout to the layout that audiodiff saves.

    python -m audiodiff_core.checkpoint [--float16] SOURCE DESTINATION

audiodiff and diffusers can load the saved layout.
SOURCE is a folder, an s3:// or gs:// URI, a Hugging Face id, or the file of a CompVis LDM autoencoder (.ckpt).
Prints one line for each difference between SOURCE and DESTINATION, and then a line of JSON.
Exit status: 0 for success, 1 for an error while reading or writing, 2 for an invalid SOURCE or DESTINATION.
"""

import argparse
import json
import sys

from audiodiff_core.checkpoint.convert import convert

SUCCESS, FAILURE, USAGE_ERROR = 0, 1, 2


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        "python -m audiodiff_core.checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="model or autoencoder to convert; it is not changed")
    parser.add_argument("destination", metavar="DESTINATION", help="folder or URI to write; it must not exist")
    parser.add_argument("--float16", action="store_true", help="save the weights in half precision, which halves them")
    options = parser.parse_args()
    try:
        conversion = convert(options.source, options.destination, float16=options.float16)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILURE
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
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
