"""Planning: the best configuration that budgets allow, by a fitted law, with what is tied and what binds. No torch.

Three steps, one file each: `space.py` lists what can be built, `prices.py` says what each costs, `plan.py` chooses.
A plan needs only a table with prices as columns, so anything with a price can be planned.
"""
