"""What to draw (`Request`), what an image was made of (`Recipe`), and both as text in a PNG.

A PNG carries two texts: `difflora`, the exact recipe as JSON, which `read_recipe` gives back; and
`parameters`, which A1111, Civitai and their many readers know, and which `parse_parameters` reads from the
images of others.
"""

from difflora.recipe.infotext import Parameters, parameters_text, parse_parameters
from difflora.recipe.png import png_text, read_parameters, read_recipe, save_png
from difflora.recipe.record import Recipe, RecipeAdapter, RecipeBase
from difflora.recipe.request import Request

__all__ = [
    "Parameters",
    "Recipe",
    "RecipeAdapter",
    "RecipeBase",
    "Request",
    "parameters_text",
    "parse_parameters",
    "png_text",
    "read_parameters",
    "read_recipe",
    "save_png",
]
