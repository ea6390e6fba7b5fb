"""The look of every chart: colours, and settings of matplotlib, which is not imported here."""

# Okabe and Ito (2008): told apart whatever one's colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT, GRID, PAPER = "#222222", "#8A8A8A", "#E4E4E4", "#FFFFFF"

# The background is opaque, for a page may be light or dark.
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "font.size": 10,
    "legend.frameon": False,
}
