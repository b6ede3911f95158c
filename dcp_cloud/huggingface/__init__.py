"""Models in Hugging Face's safetensors files: written, read, dequantised and consolidated on any object store."""
