// The page of cornerstone.js, bundled by esbuild: a stack of a series through the DICOMweb image loader.
import { Enums, RenderingEngine, imageLoader, init as initCore } from '@cornerstonejs/core';
import { init as initLoader, wadors } from '@cornerstonejs/dicom-image-loader';

const value = (header, tag) => header[tag].Value[0];

window.showSeries = async (root, study, series) => {
  await initCore();
  await initLoader({ maxWebWorkers: 1 });
  const path = `${root}/studies/${study}/series/${series}`;
  const answer = await fetch(`${path}/metadata`, { headers: { Accept: 'application/dicom+json' } });
  const headers = await answer.json();
  headers.sort((one, other) => value(one, '00200013') - value(other, '00200013'));
  const ids = headers.map(header => {
    const id = `wadors:${path}/instances/${value(header, '00080018')}/frames/1`;
    wadors.metaDataManager.add(id, header);
    return id;
  });
  const engine = new RenderingEngine('engine');
  engine.enableElement({ viewportId: 'stack', type: Enums.ViewportType.STACK, element: document.getElementById('stack') });
  const viewport = engine.getViewport('stack');
  await viewport.setStack(ids);
  viewport.render();
  const pixels = [];
  for (const id of ids) {
    const image = await imageLoader.loadAndCacheImage(id);
    pixels.push([id, window.toBase64(image.getPixelData())]);
  }
  return pixels;
};
