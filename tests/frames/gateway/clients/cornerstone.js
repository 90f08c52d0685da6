// A page of another origin with Cornerstone3D (page.js) shows a series; its decoded pixels are taken.
module.exports = async (page, { url, page: origin, study, series }, folder) => {
  await page.goto(origin + '/index.html');
  const pixels = await page.evaluate(given => window.showSeries(...given), [url + '/dicomweb', study, series]);
  await page.screenshot({ path: folder + '/cornerstone.png' });
  return { pixels };
};
