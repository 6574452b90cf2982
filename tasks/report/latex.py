"""Tables for papers: LaTeX with booktabs' rules."""

from __future__ import annotations

from winnow.tasks.report.tables import MINUS, MISSING, Table

__all__ = ["to_latex"]

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    MINUS: "$-$",
    MISSING: "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    r"""The text with everything that LaTeX would act on made literal, on one line.

    >>> print(escape_latex("50% of {a_b} ± 1"))
    50\% of \{a\_b\} $\pm$ 1
    """
    return "".join(_SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def to_latex(table: Table) -> str:
    r"""The table as a float with booktabs' rules; needs ``\usepackage{booktabs}``.

    >>> print(to_latex(Table(("method", "10 % kept"), (("d2", "92.0"),), "Accuracy.", frozenset({(0, 1)}))))
    \begin{table}
      \centering
      \caption{Accuracy.}
      \begin{tabular}{lr}
        \toprule
        method & 10 \% kept \\
        \midrule
        d2 & \textbf{92.0} \\
        \bottomrule
      \end{tabular}
    \end{table}
    """
    sides = "".join("r" if table.numeric(column) else "l" for column in range(len(table.columns)))
    lines = [
        [
            rf"\textbf{{{text}}}" if (r, c) in table.bold else text
            for c, text in enumerate(map(escape_latex, row))
        ]
        for r, row in enumerate(table.rows)
    ]
    head, *body = (" & ".join(cells) + r" \\" for cells in (map(escape_latex, table.columns), *lines))
    inner = [r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    caption = [rf"  \caption{{{escape_latex(table.caption)}}}"] if table.caption else []
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            *caption,
            rf"  \begin{{tabular}}{{{sides}}}",
            *(f"    {line}" for line in inner),
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )
