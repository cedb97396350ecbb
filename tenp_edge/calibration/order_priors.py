"""The orders in which a calibration cuts neurons. No torch here: the command line names them."""

# Weight of the prior in the order, by the neuron score that cuts in it. Without it, neurons that
# the calibration text did not need are cut in an order that its noise decides. How much is best
# differs from model to model more than from text to text (docs/results.md), so there are two
# orders, and `probes` measures which one this model wants.
ORDER_PRIORS = {"joint": 0.02, "joint-insured": 0.2}
