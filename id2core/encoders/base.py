"""What every encoder is: a frozen network on one device, pixels in, latents out."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from id2core.encoders import information
from id2core.encoders.preprocess import Preprocess
from id2core.environment import has_compiler
from id2core.errors import EncoderError

_log = logging.getLogger("id2")


class Encoder:
    """A frozen encoder on one device.

    The batch handed to the network always has `batch_size` pictures, the last one filled up with black:
    with one shape a picture's latent does not depend on its neighbors, so an interrupted run, resumed,
    gives the same bits.

    Attributes:
        encoder_id: name and the first 12 hex of the weights' SHA-256.
        preprocess: what the pixels must look like.
    """

    def __init__(
        self,
        name: str,
        weights_hash: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
        preprocess: Preprocess,
        batch_size: int | None = None,
        memory_format: torch.memory_format = torch.channels_last,
        in_float32: Callable[[], Encoder] | None = None,
        compiles: bool = False,
    ) -> None:
        """Put an encoder around a network.

        Args:
            name, weights_hash: make the encoder_id.
            network: float[B,3,size,size] → float[B,…].
            device, dtype: that the network runs on and in.
            preprocess: what the pixels must look like.
            batch_size: pictures in one call; by default 64 on a GPU, 16 on a CPU.
            memory_format: of the input.
            in_float32: makes the same encoder in float32, for pictures that overflow `dtype`.
            compiles: the network is one that a GPU runs faster when it is compiled.
        """
        self.encoder_id = f"{name}-{weights_hash[:12]}"
        self.preprocess = preprocess
        self.device, self.dtype = device, dtype
        self.batch_size = batch_size or (64 if device.type == "cuda" else 16)
        self._network = network
        self._memory_format = memory_format
        self._lock = threading.Lock()
        self._in_float32 = in_float32
        self._compiles = compiles
        self._mean = torch.tensor(preprocess.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(preprocess.std, device=device).view(1, 3, 1, 1) * 255

    @functools.cached_property
    def latent_size(self) -> int:
        """Number of values in a latent, n. The first call encodes two plain pictures.

        Raises:
            EncoderError: the network cannot encode them: it fails, or its output is no finite latent each.
        """
        size = self.preprocess.size
        pixels = np.zeros((2, size, size, 3), np.uint8)
        pixels[1] = np.linspace(0, 255, size).astype(np.uint8)[:, None]
        try:
            latents = self.encode(pixels)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise EncoderError(f"{self.encoder_id} cannot encode a plain picture: {reason}") from error
        if not np.isfinite(latents).all():
            raise EncoderError(
                f"{self.encoder_id} in {self.dtype} gives no finite latents, even of plain pictures: its "
                "weights are damaged, or need ID2_DTYPE=float32"
            )
        return int(latents.shape[1])

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latents of pictures: the mode of the posterior, no scaling factor, flattened.

        Args:
            pixels: uint8[B,size,size,3] RGB.

        A picture that overflows the network's dtype is encoded again in float32, where the encoder can be.

        Returns:
            float16[B,n]; a row that overflows all the same holds infinities or NaN.

        Raises:
            EncoderError: the network's output is not one row of numbers for each picture.
        """
        side = self.preprocess.size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be uint8[B,{side},{side},3], not {pixels.dtype}{pixels.shape}")
        step = self.batch_size
        parts = [self._encode_batch(pixels[i : i + step]) for i in range(0, len(pixels), step)]
        if not parts:
            return np.empty((0, self.latent_size), np.float16)
        latents = np.concatenate(parts)
        overflown = ~np.isfinite(latents).all(axis=1)
        if overflown.any() and self._twin is not None:
            latents[overflown] = self._twin.encode(pixels[overflown])
        return latents

    @functools.cached_property
    def _twin(self) -> Encoder | None:
        """This encoder in float32; None where it runs in float32, or no other can be made."""
        return self._in_float32() if self._in_float32 and self.dtype != torch.float32 else None

    def compile(self, options: Mapping[str, bool]) -> None:
        """Compile the network, when it is first called, if it runs on a GPU and gains from it.

        Bits of latents then depend on torch's version, on the GPU and, with an option that tunes by time, on
        what was fastest.

        Args:
            options: of torch's compiler.
        """
        if self.device.type != "cuda" or not self._compiles:
            return
        if not has_compiler():
            _log.warning("%s is not compiled: Triton or a C compiler (gcc) is missing", self.encoder_id)
            return
        self._network = torch.compile(self._network, dynamic=False, options={**options} or None)

    def information(self, pixels: NDArray[np.uint8]) -> float:
        """Return how much a picture uint8[size,size,3] shows, from 0 to 1; see `information`."""
        return information.measure(pixels)

    def _encode_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        count = len(pixels)
        if count < self.batch_size:
            filler = np.zeros((self.batch_size - count, *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, filler])
        with self._lock, torch.inference_mode():
            latents = self._checked(self._network(self._to_input(pixels))).flatten(1)
            return latents[:count].to(torch.float16).cpu().numpy()

    def _checked(self, output: object) -> torch.Tensor:
        """Return the output of the network. One of other rows would give pictures the latents of others."""
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            kind = str(output.dtype) if isinstance(output, torch.Tensor) else type(output).__name__
            raise EncoderError(f"{self.encoder_id} gives {kind} instead of a tensor of floats")
        if output.ndim < 2 or len(output) != self.batch_size or not output.numel():
            raise EncoderError(
                f"{self.encoder_id} gives {list(output.shape)} for {self.batch_size} pictures; a latent must "
                "be one row for each"
            )
        return output

    def _to_input(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 NHWC → scaled NCHW in the network's dtype and memory layout."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
        self._scaled.copy_(x.permute(0, 3, 1, 2)).sub_(self._mean).div_(self._std)
        return self._scaled if self.dtype == torch.float32 else self._input.copy_(self._scaled)

    # Allocated once: temporaries of this size, made anew for every batch, scatter the heap.
    @functools.cached_property
    def _scaled(self) -> torch.Tensor:
        return self._buffer(torch.float32)

    @functools.cached_property
    def _input(self) -> torch.Tensor:
        return self._buffer(self.dtype)

    def _buffer(self, dtype: torch.dtype) -> torch.Tensor:
        side = self.preprocess.size
        shape = (self.batch_size, 3, side, side)
        return torch.empty(shape, dtype=dtype, device=self.device).to(memory_format=self._memory_format)


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for a float16 file and its float32 copy."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
