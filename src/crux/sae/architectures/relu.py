"""ReLU: the SAE of Braun et al. 2405.12241 (§2 and the authors' `sparsifiers.py`), untied, with an L1 penalty."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.sae.architectures.codes import Codes
from crux.sae.architectures.means import mean_over_tokens
from crux.sae.architectures.sae import SAE


class ReluSAE(SAE):
    """An SAE with c = ReLU(s·x W_enc + b_enc) and an L1 penalty (Braun et al. 2405.12241, §2.1)."""

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Tensor | None = None) -> Codes:
        pre = self.pre_activations(x)
        index = self.index_if_sparse(~(pre.detach() <= 0))  # NaN must not be taken for zero
        return Codes(F.relu(pre), pre) if index is None else self.sparse_codes(x, pre, index, F.relu)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return the mean over tokens of ‖c‖₁ / d_model: φ/λ of Braun et al. (§2.1, with the 1/d_model of the authors' code)."""
        return mean_over_tokens(codes.sum_of(lambda c: c), weight) / self.d_model  # codes are not negative
