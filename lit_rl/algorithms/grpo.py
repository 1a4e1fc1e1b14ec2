"""Group relative policy optimization (GRPO, DeepSeekMath, arXiv 2402.03300) and its family.

For each prompt G completions are drawn and rewarded; a completion's advantage is its reward against the others of its
group, so no critic is needed:

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)
    loss = -min(rho A, clip(rho, 1 - low, 1 + high) A) + kl_coef * KL(policy || reference) - entropy_coef * H

per token, rho = p(token) / p_sampler(token), averaged by ``aggregation`` over the whole optimizer step. Other baselines,
surrogates, ratios and KL terms are options; ``configs/objective/`` holds the published algorithms as values of them
(Dr. GRPO, DAPO, GSPO, CISPO, SAPO, RLOO, REINFORCE, REINFORCE++), `docs/objectives.md` explains them. The steps stand in
`lit_rl.group_relative`, which RPT shares.

Run: ``lit-rl fit --config grpo_arithmetic``, or with ``--config objective/dapo`` behind it
"""

from __future__ import annotations

from lit_rl.group_relative import GroupRelative


class GRPO(GroupRelative):
    """Group relative policy optimization on problems whose answers can be checked."""
