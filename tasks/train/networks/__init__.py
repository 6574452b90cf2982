"""Networks: logits from images, with ``features`` (the penultimate layer) and ``head`` (the last linear layer) apart."""
