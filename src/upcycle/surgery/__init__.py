"""Operations on networks that methods rest on: trace, cut, follow channels, resize, assemble, stitch, scale."""
