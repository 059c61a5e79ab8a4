"""A web page on which pictures and videos are segmented and pixels asked what they attend to."""

from ccnet_hf.demo.demo_arguments import main


__all__ = ["main"]
