// The status page: what it says, and where its links lead.
module.exports = async (page, { url, studies }, folder) => {
  await page.goto(url + '/status');
  await page.waitForFunction(count => document.querySelectorAll('#sources tbody tr').length === count, studies);
  const text = await page.innerText('body');
  const links = await page.$$eval('#sources a', all => all.map(each => each.getAttribute('href')));
  await page.screenshot({ path: folder + '/status.png' });
  return { text, links };
};
