"""The tabs of the page, one file each. A new tab is one file here and one entry in TABS."""

from webui.tabs.blend import BLEND
from webui.tabs.generate import GENERATE
from webui.tabs.library import LIBRARY
from webui.tabs.tab import Tab
from webui.tabs.train import TRAIN

TABS: tuple[Tab, ...] = (GENERATE, BLEND, TRAIN, LIBRARY)
