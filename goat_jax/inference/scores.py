"""`Scores`: a run's scores by metric, printed as a table."""

from __future__ import annotations

from goat_jax.text_tables import html_table, render_table

HEADERS = ("held out", "score")


class Scores(dict[str, float]):
    """Scores on the evaluation rows: metric -> value.

    >>> Scores(loss=0.41234, accuracy=0.825)
    held out   score
    --------  ------
    loss      0.4123
    accuracy   0.825
    """

    def __repr__(self) -> str:
        return render_table(HEADERS, [*self.items()])

    def _repr_html_(self) -> str:
        """Returns the table in HTML, which a notebook shows."""
        return html_table(HEADERS, [*self.items()])
