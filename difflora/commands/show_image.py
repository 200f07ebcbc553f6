"""What `difflora show` says of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from difflora.errors import RecipeError
from difflora.recipe import Parameters, Recipe, Request, read_parameters, read_recipe


def image_document(path: Path) -> dict[str, Any]:
    """The same as plain values: difflora's own recipe, or the request that A1111's parameters make, with the
    reason why a recipe that is there cannot be read."""
    try:
        return {"recipe": read_recipe(path).model_dump(mode="json")}
    except RecipeError as error:
        found, problem = _parameters(path, error), _problem(error)
    tags = [str(tag) for tag in found.tags]
    document = {
        "request": found.request.model_dump(mode="json"),
        "adapters": tags,
        "unused": dict(found.unused),
    }
    return document | ({"recipe_problem": problem} if problem else {})


def image_lines(path: Path) -> list[str]:
    """How an image was made. Raises RecipeError if it does not say."""
    try:
        return _recipe_lines(path, read_recipe(path))
    except RecipeError as error:
        found, problem = _parameters(path, error), _problem(error)
    note = [f"its recipe of difflora cannot be read: {problem}"] if problem else []
    return [*note, *_foreign_lines(path, found)]


def _parameters(path: Path, error: RecipeError) -> Parameters:
    """A1111's parameters. Raises `error` if there are none either, or why they cannot be read if they are all
    there is."""
    try:
        return read_parameters(path)
    except RecipeError as foreign:
        raise (foreign if _problem(foreign) and not _problem(error) else error) from None


def _problem(error: RecipeError) -> str:
    """Why a text of an image cannot be read; "" where it is not there, behind which is no other error."""
    return str(error) if isinstance(error.__cause__, RecipeError) else ""


def _recipe_lines(path: Path, recipe: Recipe) -> list[str]:
    lines = [f"{path.name}: drawn by difflora", *_request_lines(recipe.request, seed=recipe.seed)]
    for adapter in recipe.adapters:
        weight = f"weight {adapter.unet:g}" if adapter.unet == adapter.text else (
            f"weight {adapter.unet:g} on the UNet, {adapter.text:g} on the text"
        )  # fmt: skip
        lines.append(f"  adapter           {adapter.name}, {weight}, data hash {adapter.data_hash[:12]}")
    place = f"{recipe.device}, {recipe.dtype}, {recipe.threads} threads, {recipe.mode}"
    batch = f"image {recipe.batch_index + 1} of a batch of {recipe.batch_size}"
    versions = ", ".join(f"{name} {version}" for name, version in recipe.versions.items())
    lines += [
        f"  base              {recipe.base.name} (sha256 {recipe.base.sha256[:12] or 'not known'})",
        f"  drawn on          {place}, {batch}",
        f"  versions          {versions}",
        f'draw it again: difflora generate --base-model BASE --adapters FOLDER --from "{path}"',
    ]
    return lines


def _foreign_lines(path: Path, found: Parameters) -> list[str]:
    lines = [f"{path.name}: A1111 parameters", *_request_lines(found.request, seed=found.request.seed)]
    lines += [f"  adapter           {tag}" for tag in found.tags]
    return lines + [f"  not used          {name} = {value}" for name, value in found.unused.items()]


def _request_lines(request: Request, *, seed: int) -> list[str]:
    facts = request.model_dump(exclude={"seed", "batch"}, exclude_none=True)
    shown = {name: value for name, value in facts.items() if value != ""}
    return [f"  {name:18}{value}" for name, value in (shown | {"seed": seed}).items()]
