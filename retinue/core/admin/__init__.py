"""HTTP for state and metrics, and what libraries register there."""
