"""Embedders by name; importing this registers them and loads nothing heavy."""

from winnow.tasks.registry import embedders

embedders.add("pixels", ".pixels:pixels", weights="none", learns=False)
embedders.add("patches", ".patches:patches", dim=256, weights="learnt from the images")

embedders.add("dino_vits16", ".dino:dino_vits16", dim=384, learns=False)
embedders.add("dino_vits8", ".dino:dino_vits8", dim=384, learns=False)
embedders.add("dino_vitb16", ".dino:dino_vitb16", dim=768, learns=False)
embedders.add("dino_vitb8", ".dino:dino_vitb8", dim=768, learns=False)
embedders.add("dino_resnet50", ".dino:dino_resnet50", dim=2048, learns=False)
embedders.add("dinov2_vits14", ".dino:dinov2_vits14", dim=384, learns=False)
embedders.add("dinov2_vitb14", ".dino:dinov2_vitb14", dim=768, learns=False)
embedders.add("dinov2_vitl14", ".dino:dinov2_vitl14", dim=1024, learns=False)
embedders.add("dinov2_vitg14", ".dino:dinov2_vitg14", dim=1536, learns=False)
embedders.add("dinov2_vits14_reg", ".dino:dinov2_vits14_reg", dim=384, learns=False)
embedders.add("dinov2_vitb14_reg", ".dino:dinov2_vitb14_reg", dim=768, learns=False)
embedders.add("dinov2_vitl14_reg", ".dino:dinov2_vitl14_reg", dim=1024, learns=False)
embedders.add("dinov2_vitg14_reg", ".dino:dinov2_vitg14_reg", dim=1536, learns=False)
embedders.add("swav", ".swav:swav", upstream=".upstream.swav:swav", dim=2048, learns=False)

embedders.add("clip_*", ".clip:clip", learns=False)
embedders.add("timm:*", ".timm_models:timm", learns=False)
embedders.add("network:*", ".network:network", learns=False)
