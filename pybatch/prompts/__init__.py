"""Prompts: templates that a job's rows fill in.

>>> import pybatch.prompts
>>> prompt = pybatch.prompts.parse("Is this praise? {text}")
>>> prompt.variables
('text',)
>>> prompt.render([{"text": "Lovely."}])
['Is this praise? Lovely.']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybatch.lazy import lazy_names

if TYPE_CHECKING:
    from pybatch.prompts.comparing import compare
    from pybatch.prompts.comparison.figures import Comparison
    from pybatch.prompts.comparison.score import Score
    from pybatch.prompts.errors import PromptError
    from pybatch.prompts.front_matter import Config
    from pybatch.prompts.loading import load, names, parse
    from pybatch.prompts.prompt import Prompt, Step

__all__ = ["Comparison", "Config", "Prompt", "PromptError", "Score", "Step", "compare", "load", "names", "parse"]

__getattr__, __dir__ = lazy_names(
    globals(),
    {
        "Comparison": "pybatch.prompts.comparison.figures",
        "Config": "pybatch.prompts.front_matter",
        "Prompt": "pybatch.prompts.prompt",
        "PromptError": "pybatch.prompts.errors",
        "Score": "pybatch.prompts.comparison.score",
        "Step": "pybatch.prompts.prompt",
        "compare": "pybatch.prompts.comparing",
        "load": "pybatch.prompts.loading",
        "names": "pybatch.prompts.loading",
        "parse": "pybatch.prompts.loading",
    },
)
