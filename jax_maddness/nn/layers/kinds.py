"""Names of the products that can compute a layer, as rules, plans, specs and reports spell them."""

EXACT, INT8, LOW_RANK, CODES = "exact", "int8", "low rank", "codes"
PRODUCTS = (CODES, INT8, LOW_RANK)
"""The products that can replace a layer: look-ups by codes, int8 with dynamic steps, and a low-rank product."""
