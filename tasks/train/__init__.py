"""Training: networks by name here; loop, loaders and cluster heads in their modules."""

from winnow.tasks.registry import networks

networks.add("alexnet", ".networks.alexnet:alexnet", sizes="28 and more", hardware="GPU")
networks.add("convnet", ".networks.small:convnet", sizes="4 and more", hardware="CPU")
networks.add("inception_v3", ".networks.inception:inception_v3", sizes="28 and more", hardware="GPU")
networks.add("lenet", ".networks.small:lenet", sizes="12 and more", hardware="CPU")
networks.add("mlp", ".networks.small:mlp", sizes="any", hardware="CPU")
networks.add(
    "mobilenet_v3_large", ".networks.mobilenet:mobilenet_v3_large", sizes="28 and more", hardware="GPU"
)
networks.add(
    "mobilenet_v3_small", ".networks.mobilenet:mobilenet_v3_small", sizes="28 and more", hardware="GPU"
)
networks.add("resnet8", ".networks.resnet:resnet8", sizes="8 and more", hardware="CPU")
networks.add("resnet18", ".networks.resnet:resnet18", sizes="any", hardware="GPU")
networks.add("resnet20", ".networks.resnet:resnet20", sizes="8 and more", hardware="CPU")
networks.add("resnet34", ".networks.resnet:resnet34", sizes="any", hardware="GPU")
networks.add("resnet50", ".networks.resnet:resnet50", sizes="any", hardware="GPU")
networks.add("resnet101", ".networks.resnet:resnet101", sizes="any", hardware="GPU")
networks.add("resnet152", ".networks.resnet:resnet152", sizes="any", hardware="GPU")
networks.add("vgg11", ".networks.vgg:vgg11", sizes="28 and more", hardware="GPU")
networks.add("vgg13", ".networks.vgg:vgg13", sizes="28 and more", hardware="GPU")
networks.add("vgg16", ".networks.vgg:vgg16", sizes="28 and more", hardware="GPU")
networks.add("vgg19", ".networks.vgg:vgg19", sizes="28 and more", hardware="GPU")
networks.add("wideresnet16_8", ".networks.wide_resnet:wideresnet16_8", sizes="8 and more", hardware="GPU")
networks.add("wideresnet28_10", ".networks.wide_resnet:wideresnet28_10", sizes="8 and more", hardware="GPU")
networks.add("wideresnet50_2", ".networks.resnet:wideresnet50_2", sizes="any", hardware="GPU")
networks.add("timm:*", ".networks.timm_models:timm_network", hardware="GPU")
