"""What a model costs, from closed formulas: tokens, parameters, multiply-adds. No torch.

One multiply-add (MAC) is two FLOPs, everywhere. Counted are matrix products and convolutions; elementwise work
(norms, activations, softmax, gates, residual sums) is not, as in `torch.utils.flop_counter` and in the literature.

Legend of the formulas: T patch tokens, n tokens a layer sees, D embed_dim, m mlp_dim, K classes, p patch_size;
for the scan E = d_inner, H heads, S d_state, k d_conv, Q chunk length, L tokens the mixer sees.
"""
