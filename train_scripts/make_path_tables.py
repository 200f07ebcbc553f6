"""Writes the table of module paths of every model variant from its configs: `python -m
train_scripts.make_path_tables`.

The models are built on the meta device, so this needs neither weights nor memory. Run it after changing a
config in `difflora/families/assets`, or when adding a family; a test compares the tables with the models.
"""

import json

from difflora.families import FAMILIES
from difflora.families.family import ASSETS, canonical_names
from difflora.families.skeleton import skeleton
from difflora.families.tables import pack


def main() -> None:
    for family in FAMILIES:
        for variant in family.variants:
            table: dict[str, list[str]] = {}
            # The variants of a family that share an encoder name its modules once.
            for part in (part for part in family.components if (ASSETS / variant / part.name).is_dir()):
                module = skeleton(ASSETS / variant / part.name)
                owners = [
                    name for name, child in module.named_modules() if list(child.parameters(recurse=False))
                ]
                table[part.name] = list(canonical_names(owners, part.name).values())
            packed = {name: pack(names) for name, names in table.items()}
            text = json.dumps(packed, indent=0)
            (ASSETS / variant / "paths.json").write_text(f"{text}\n", encoding="utf-8")
            print(
                f"{variant}: " + ", ".join(f"{len(names)} modules in {name}" for name, names in table.items())
            )


if __name__ == "__main__":
    main()
