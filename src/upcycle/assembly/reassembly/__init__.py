"""The steps of reassembling networks: a zoo as tables, its partition, the search in it, a training-free score."""
