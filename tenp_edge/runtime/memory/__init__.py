"""What running a file takes in memory: asked, predicted and measured."""
