"""Networks: logits from images, with ``features`` (penultimate) and ``head`` (last linear layer) separate."""
