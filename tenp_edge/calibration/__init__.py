"""Calibration: text in, statistics out.

text/                reading --data, chat templates, domains; text_kind says how much alike they are
what is collected    statistics (sums), elimination and order_priors (orders of cuts), gradients
who watches a layer  expert_observer, input_observer
the run              collect, held_out, coverage
on disk              storage, statistics_checks, merging
made of it           imatrix, activation_ranges (measured by range_measuring)
"""
