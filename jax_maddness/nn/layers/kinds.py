"""Names of the products that can compute a layer, as rules, plans, specs and reports spell them."""

EXACT, INT8, LOW_RANK, FACTORS, CODES = "exact", "int8", "low rank", "factors", "codes"
REWRITTEN = "rewritten"
SAME = (EXACT, REWRITTEN)
"""The products that compute what the layer computes, up to rounding; all others are approximations."""
TOP = "top outputs"
PLANNED = (CODES, FACTORS, INT8, LOW_RANK, REWRITTEN)
"""The products between which `plan` chooses: look-ups by codes; factors in int8, of full rank the whole product in
int8; XLA's int8 with dynamic steps; a low-rank product in floats; and depthwise and 1x1 convolutions rewritten, which
is exact."""
PRODUCTS = (*PLANNED, TOP)
"""The products that can replace a layer: these, and output layers whose greatest outputs are exact."""
