"""All kinds of terms. A new one is a file beside this one, and one entry here."""

from jax_maddness.core.terms.base import Term
from jax_maddness.core.terms.exact_term import ExactTerm
from jax_maddness.core.terms.factors import Factors
from jax_maddness.core.terms.int8_product import Int8Product, Int8ProductByRow

TERMS: tuple[type[Term], ...] = (ExactTerm, Factors, Int8Product, Int8ProductByRow)
TERM_KINDS: dict[str, type[Term]] = {kind.name: kind for kind in TERMS}
"""The kinds by the names that they have in files."""
