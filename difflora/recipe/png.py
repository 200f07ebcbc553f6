"""Recipes in PNG files."""

import io
import os

from PIL import Image, PngImagePlugin

from difflora.errors import RecipeError
from difflora.files import atomic_write
from difflora.recipe.infotext import Parameters, parameters_text, parse_parameters
from difflora.recipe.record import Recipe

RECIPE_KEY = "difflora"
PARAMETERS_KEY = "parameters"

# Texts by which the images of other tools are known.
_TOOLS = {
    "workflow": "ComfyUI",
    "prompt": "ComfyUI",
    "invokeai_metadata": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "fooocus_scheme": "Fooocus",
    "Dream": "an old InvokeAI",
    "Comment": "NovelAI or another tool",
}


def png_text(recipe: Recipe) -> dict[str, str]:
    """The texts of a PNG: `parameters` for A1111 and its readers, `difflora` for the whole recipe."""
    return {PARAMETERS_KEY: parameters_text(recipe), RECIPE_KEY: recipe.to_json()}


def save_png(image: Image.Image, path: str | os.PathLike[str], recipe: Recipe) -> None:
    """Writes a PNG with its recipe: all of it, or nothing. The same image and recipe give the same bytes.

    Raises RecipeError if it cannot be written there.
    """
    texts = PngImagePlugin.PngInfo()
    for key, value in png_text(recipe).items():
        texts.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=texts)
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror or error}") from error


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a PNG that difflora made. Raises RecipeError that says what the file holds instead."""
    texts = _texts(path)
    if RECIPE_KEY in texts:
        try:
            return Recipe.from_json(texts[RECIPE_KEY])
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error
    if PARAMETERS_KEY in texts:
        raise RecipeError(
            f"{path} was not made by difflora: it has A1111 parameters, which name no exact recipe. "
            "Read them with `read_parameters` for a similar image."
        )
    raise RecipeError(_nothing_usable(path, texts))


def read_parameters(path: str | os.PathLike[str]) -> Parameters:
    """What the A1111 parameters of a PNG ask for. Raises RecipeError that says what it holds instead."""
    texts = _texts(path)
    if PARAMETERS_KEY not in texts:
        raise RecipeError(_nothing_usable(path, texts))
    try:
        return parse_parameters(texts[PARAMETERS_KEY])
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _nothing_usable(path: str | os.PathLike[str], texts: dict[str, str]) -> str:
    tool = next((tool for key, tool in _TOOLS.items() if key in texts), None)
    if tool:
        return f"{path} was made by {tool}; difflora does not read its texts: {', '.join(texts)}."
    if texts:
        return f"{path} holds no recipe. Its texts are: {', '.join(texts)}."
    return f"{path} holds no recipe and no text at all. Programs that edit or send images often strip it."


def _texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG. Its pixels are read too: texts may stand behind them, and damage is found."""
    try:
        with Image.open(path) as image:
            if not isinstance(image, PngImagePlugin.PngImageFile):
                raise RecipeError(f"{path} is a {image.format} image; recipes are kept in PNG files.")
            image.load()
            return {key: str(value) for key, value in image.text.items()}
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{path} cannot be read as an image: {error}") from error
