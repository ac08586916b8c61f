"""Jinja templates, for HAProxy's files and for any other: strict, errors with file and line."""

from pathlib import Path
from typing import Any

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
)

from discovery.errors import RenderError

# What expressions in a template can raise besides Jinja's own errors, and the file system below its loader.
# RecursionError is a RuntimeError: a template that includes itself must not end the process.
_MISTAKES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Templates:
    """The templates in some directories; a file in an earlier one hides its namesake in a later one."""

    def __init__(self, *directories: Path, auto_reload: bool = True) -> None:
        """Without ``auto_reload`` a template stays as it was read first, until ``clear``."""
        self.directories = directories
        loader: BaseLoader = ChoiceLoader([FileSystemLoader(str(directory)) for directory in directories])
        self._environment = Environment(
            loader=loader,
            auto_reload=auto_reload,
            undefined=StrictUndefined,
            autoescape=False,  # configuration files, no HTML; schema.py has validated the values
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )

    def render(self, name: str, **context: Any) -> str:
        """The text of template ``name``. Raises RenderError, naming the file and line at fault."""
        try:
            return self._environment.get_template(name).render(**context)
        except TemplateSyntaxError as error:
            raise RenderError(
                f"{error.filename or error.name or name}:{error.lineno}: {error.message}"
            ) from error
        except TemplateNotFound as error:
            place = self._place(error, "")
            places = ", ".join(str(directory) for directory in self.directories)
            reason = f"{error.name}: there is no such template in {places}"
            raise RenderError(f"{place}: {reason}" if place else reason) from error
        except TemplateError as error:
            raise RenderError(f"{self._place(error, name)}: {error}") from error
        except _MISTAKES as error:
            raise RenderError(f"{self._place(error, name)}: {type(error).__name__}: {error}") from error

    def clear(self) -> None:
        """Forget compiled templates, so that changed files are read anew."""
        if self._environment.cache is not None:
            self._environment.cache.clear()

    def _place(self, error: BaseException, name: str) -> str:
        """``file:line`` of the innermost template in the traceback, where Jinja puts its own lines."""
        place = name
        trace = error.__traceback__
        while trace is not None:
            path = Path(trace.tb_frame.f_code.co_filename)
            if any(path.is_relative_to(directory) for directory in self.directories):
                place = f"{path}:{trace.tb_lineno}"
            trace = trace.tb_next
        return place
