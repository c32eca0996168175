"""What of a photo's metadata may travel with it: the orientation is applied, the rest dropped or filtered.

Filtering is a list of what stays, never of what goes. Cameras put previews into many places (the EXIF
thumbnail, maker notes, Photoshop and XMP blocks) and each of them would show the face as it was.
"""

from __future__ import annotations

from PIL import Image
from PIL.ExifTags import IFD, Base

_KEPT_TAGS = (
    Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution,
    Base.ResolutionUnit, Base.Software, Base.DateTime, Base.Artist, Base.Copyright,
)  # fmt: skip
# When, and how the camera was set. No tag of free bytes (maker note, user comment: some hold a preview of the
# original) and no size, which is as stored, before the orientation was applied.
_KEPT_DETAILS = frozenset((
    Base.ExifVersion, Base.DateTimeOriginal, Base.DateTimeDigitized, Base.OffsetTime, Base.OffsetTimeOriginal,
    Base.OffsetTimeDigitized, Base.SubsecTime, Base.SubsecTimeOriginal, Base.SubsecTimeDigitized,
    Base.ExposureTime, Base.FNumber, Base.ExposureProgram, Base.ISOSpeedRatings, Base.SensitivityType,
    Base.RecommendedExposureIndex, Base.ShutterSpeedValue, Base.ApertureValue, Base.BrightnessValue,
    Base.ExposureBiasValue, Base.MaxApertureValue, Base.SubjectDistance, Base.MeteringMode, Base.LightSource,
    Base.Flash, Base.FocalLength, Base.FocalLengthIn35mmFilm, Base.ColorSpace, Base.SensingMethod,
    Base.ExposureMode, Base.WhiteBalance, Base.DigitalZoomRatio, Base.SceneCaptureType, Base.GainControl,
    Base.Contrast, Base.Saturation, Base.Sharpness, Base.LensSpecification, Base.LensMake, Base.LensModel,
))  # fmt: skip


def filtered_exif(image: Image.Image) -> bytes | None:
    """EXIF block that is safe beside the protected pixels, or ``None`` where the photo has none.

    Kept: camera, date, artist, copyright, description, resolution, exposure data and GPS position.
    Dropped: thumbnail, maker notes, and any tag not listed here. The orientation tag is 1, because the
    pixels are upright once read.

    Args:
        image: a photo as Pillow opened it; its pixels are not read.

    Returns:
        A block for the ``exif`` argument of ``PIL.Image.Image.save``.

    Example:
        >>> from PIL import Image
        >>> filtered_exif(Image.new("RGB", (8, 8))) is None
        True
    """
    source = image.getexif()
    if not source:
        return None
    kept = Image.Exif()
    for tag in _KEPT_TAGS:
        if tag in source:
            kept[tag] = source[tag]
    kept[Base.Orientation] = 1
    details, position = source.get_ifd(IFD.Exif), source.get_ifd(IFD.GPSInfo)
    if details:
        kept.get_ifd(IFD.Exif).update({k: v for k, v in details.items() if k in _KEPT_DETAILS})
    if position:
        kept.get_ifd(IFD.GPSInfo).update(position)
    return kept.tobytes()
