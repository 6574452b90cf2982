"""Training: networks by name here; loop, loaders and cluster heads in their modules."""

from tasks.registry import networks

networks.add("convnet", "tasks.train.networks.small:convnet", sizes="4 and more", hardware="CPU")
networks.add("mlp", "tasks.train.networks.small:mlp", sizes="any", hardware="CPU")
networks.add("resnet8", "tasks.train.networks.resnet:resnet8", sizes="8 and more", hardware="CPU")
networks.add("resnet18", "tasks.train.networks.resnet:resnet18", sizes="any", hardware="GPU")
networks.add("resnet20", "tasks.train.networks.resnet:resnet20", sizes="8 and more", hardware="CPU")
networks.add("resnet34", "tasks.train.networks.resnet:resnet34", sizes="any", hardware="GPU")
networks.add("resnet50", "tasks.train.networks.resnet:resnet50", sizes="any", hardware="GPU")
networks.add("timm:*", "tasks.train.networks.timm_models:timm_network", hardware="GPU")
